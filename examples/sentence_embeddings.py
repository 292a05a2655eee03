"""The sentence embedding, with sentence-transformers (`pip install sentence-transformers`).

python sentence_embeddings.py FOLDER_OR_HUB_ID
"""

import sys

from sentence_transformers import SentenceTransformer

model = SentenceTransformer(sys.argv[1], trust_remote_code=True)

corpus = ["Shares of Siemens rose in Frankfurt.", "It will rain in Paris tomorrow.", "Maria plays football."]
embeddings = model.encode(corpus, batch_size=32)  # pooled, projected and normalised as the model was trained
query = model.encode(["How is the weather?"])

print("dimension:", model.get_embedding_dimension(), "- texts are cut to", model.max_seq_length, "tokens")
for score, text in sorted(zip(model.similarity(query, embeddings)[0].tolist(), corpus, strict=True), reverse=True):
    print(f"{score:.3f}  {text}")
