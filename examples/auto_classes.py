"""Every task's answer, the embedding and the raw logits, with transformers' auto classes.

python auto_classes.py FOLDER_OR_HUB_ID
"""

import sys

import torch
from transformers import AutoModel, AutoTokenizer

name = sys.argv[1]
tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
model = AutoModel.from_pretrained(name, trust_remote_code=True)  # the code is in the folder, beside the weights

texts = ["Shares of Siemens rose in Frankfurt.", "It will rain in Paris tomorrow."]
for text, answer in zip(texts, model.predict(texts, tokenizer), strict=True):
    print(text)
    for task in model.config.tasks:
        print(f"  {task}: {answer.get(task, 'answers pairs of texts')}")

# a pair is two texts in a tuple; tasks=[...] runs only these heads
print(model.predict([(texts[0], texts[1])], tokenizer, tasks=[])[0]["sentence_embedding"].shape)

embeddings = model.encode(texts, tokenizer, normalize=True)  # array (texts, dim)
print("cosine:", float(embeddings[0] @ embeddings[1]))

with torch.no_grad():  # tensors in, tensors out: one encoder pass for all heads
    output = model(**tokenizer(texts, padding=True, truncation=True, return_tensors="pt"))
print({task: tuple(logits.shape) for task, logits in output.logits.items()})
