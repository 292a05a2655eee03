"""One model behind HTTP: a micro-batcher that all endpoints share, and what guards it. Needs the extra `serve`.

Not part of training or of a saved model: these modules import the library, and nothing but `serve_hf.py` imports them.

    python serve_hf.py outputs/news
"""
