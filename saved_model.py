"""Open a folder that `train_hf.py` saved, or refuse it in one line that says what is wrong with it.

For the commands: they read a model with this project's own classes, never with code from its folder. Users of a model
open it with `AutoModel`; an encoder to start training from is `encoder_source`.

    model, tokenizer = open_model("outputs/news", offline=True)
"""

from typing import Any

from transformers import AutoTokenizer

from configuration_multitask import MultiTaskConfig
from encoder_source import check_vocabulary
from input_errors import explain_loading
from modeling_multitask import MultiTaskModel, refuse_missing_weights


def open_model(name: str, offline: bool) -> tuple[MultiTaskModel, Any]:
    """The saved model and its tokenizer.

    Raises:
        ValueError: for what is no folder or Hub id of a multi-task model with its weights as safetensors.
    """
    with explain_loading(f"The model {name!r}"):
        kind = MultiTaskConfig.get_config_dict(name, local_files_only=offline)[0].get("model_type")
        if kind != MultiTaskConfig.model_type:
            found = f"is a {kind}" if kind else "has no config.json with a model_type"
            raise ValueError(f"A saved multi-task model is needed; {name!r} {found}. Give a folder of train_hf.py.")
        model, report = MultiTaskModel.from_pretrained(
            name, local_files_only=offline, use_safetensors=True, output_loading_info=True
        )
        # with the config at hand it does not ask whether the folder's code may run
        tokenizer = AutoTokenizer.from_pretrained(
            name, config=model.config, local_files_only=offline, trust_remote_code=False
        )
    refuse_missing_weights(name, report["missing_keys"])
    check_vocabulary(name, tokenizer, model.get_input_embeddings())
    return model, tokenizer
