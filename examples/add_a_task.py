"""Give a trained model one more task, save it, and open it again: the tasks it had answer as before.

    python examples/add_a_task.py MODEL_FOLDER

The new head is random: it has to be trained on rows of its own. This trains it and leaves all that was there as it is:

    python train_hf.py YOUR_RECIPE.yaml --init_from MODEL_FOLDER --freeze encoder,projection,heads
"""

import sys
import tempfile

from transformers import AutoModel, AutoTokenizer

TEXT = "Siemens shares fell 3 percent in Frankfurt."


def main(folder: str) -> None:
    """Add, save, reload, compare."""
    tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=True)
    model = AutoModel.from_pretrained(folder, trust_remote_code=True)
    before = model.predict([TEXT], tokenizer)[0]

    model.add_task("urgency", {"kind": "text-classification", "labels": ["can wait", "urgent"]})
    with tempfile.TemporaryDirectory() as other_folder:
        model.save_pretrained(other_folder)
        tokenizer.save_pretrained(other_folder)
        model = AutoModel.from_pretrained(other_folder, trust_remote_code=True)
        after = model.predict([TEXT], tokenizer)[0]

    print(f"tasks: {', '.join(model.config.tasks)}")
    print(f"urgency (not trained yet): {after['urgency']}")
    for name in before:
        print(f"{name}: {'as before' if str(after[name]) == str(before[name]) else 'changed'}")

    model.rename_task("urgency", "priority")
    model.remove_task("priority")
    model.freeze(["encoder", "heads"])  # what is frozen stays as it is in any further training


if __name__ == "__main__":
    main(sys.argv[1])
