"""One model behind HTTP: a micro-batcher that all endpoints share, what guards it, and a web demo in front of it.

Needs the extra `serve`, for `app` also `demo`. Not part of training or of a saved model: these modules import the
library, and nothing but `serve_hf.py` imports them.

    python serve_hf.py outputs/news --demo
"""
