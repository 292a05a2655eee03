"""All heads at once, from one encoder pass, with the pipeline that the folder brings along.

python multitask_pipeline.py FOLDER_OR_HUB_ID
"""

import sys

from transformers import pipeline

pipe = pipeline("multitask", model=sys.argv[1], trust_remote_code=True)

texts = ["Shares of Siemens rose in Frankfurt.", "It will rain in Paris tomorrow.", "Maria plays football."]
for text, answer in zip(texts, pipe(texts, batch_size=8), strict=True):
    embedding = answer.pop("sentence_embedding")  # a list of floats: the whole answer can be written as JSON
    print(text, answer, f"and {len(embedding)} numbers", sep="\n  ")

# only some tasks; the two best classes; every sub-word's tag instead of spans
task = next(iter(pipe.model.config.tasks), None)
print(pipe(texts[0], tasks=[task] if task else [], top_k=2, aggregation_strategy="none").keys())

# a pair, for tasks that compare two texts or read them jointly
print(pipe([(texts[0], texts[1])])[0].keys())
