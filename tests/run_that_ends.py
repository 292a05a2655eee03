"""A run of `train_hf.py` that something happens to at a step: it is killed, told to end, or its disk fills.

    python tests/run_that_ends.py "kill 7" recipe.yaml --output_dir OUT       # SIGKILL to itself, on every rank
    python tests/run_that_ends.py "terminate 7" recipe.yaml ...               # SIGTERM, on the first rank alone
    python tests/run_that_ends.py "fill 7 optimizer.pt 0" recipe.yaml ...     # rank 0 writes no file of that size

Signals come in the middle of step 7, between two micro-batches. Everything else is `train_hf.main`, which is not
touched: the callback is one of those that transformers gives to every Trainer.
"""

import os
import resource
import signal
import sys
import time
from pathlib import Path

import transformers.trainer
from transformers import TrainerCallback

import train_hf

EVENT, STEP, *DETAIL = sys.argv[1].split()
GRACE_SECONDS = 4
"""transformers waits 3 seconds after SIGTERM before it asks for a checkpoint; the step is still the same then."""


class Fate(TrainerCallback):
    def on_substep_end(self, args, state, control, **kwargs):
        if state.global_step + 1 != int(STEP):
            return
        if EVENT == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        elif EVENT == "terminate" and args.process_index == 0:
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(GRACE_SECONDS)
        elif EVENT == "fill" and args.process_index == int(DETAIL[1]):
            newest = max(Path(args.output_dir).glob("checkpoint-*"), key=lambda folder: folder.stat().st_mtime)
            limit = (newest / DETAIL[0]).stat().st_size - 1
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)  # so that writing fails with an error, as on a full disk
            resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


if __name__ == "__main__":
    transformers.trainer.DEFAULT_CALLBACKS.append(Fate)
    train_hf.main(sys.argv[2:])
