"""One head at a time, with the pipelines that ship with transformers.

python stock_pipelines.py FOLDER_OR_HUB_ID
"""

import sys

from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer, pipeline

name = sys.argv[1]
config = AutoConfig.from_pretrained(name, trust_remote_code=True)
text = "Shares of Siemens rose in Frankfurt."

for task, spec in config.tasks.items():
    if spec["kind"] not in ("text-classification", "token-classification"):
        continue
    # model_kwargs chooses the head: task_name=... given to pipeline() itself would be ignored without a word
    pipe = pipeline(spec["kind"], model=name, trust_remote_code=True, model_kwargs={"task_name": task})
    if spec["kind"] == "token-classification":
        print(task, pipe(text, aggregation_strategy="first"))
    else:
        print(task, pipe(text, top_k=None, truncation=True))  # top_k=None: all labels

# the same by instance: a view of one head is a model like any other
tasks = [task for task, spec in config.tasks.items() if spec["kind"] == "text-classification"]
if tasks:
    model = AutoModelForSequenceClassification.from_pretrained(name, trust_remote_code=True, task_name=tasks[0])
    tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=True)
    print(tasks[0], pipeline("text-classification", model=model, tokenizer=tokenizer)(text))

states = pipeline("feature-extraction", model=name, trust_remote_code=True)(text)
print("token states:", len(states[0]), "x", len(states[0][0]))
