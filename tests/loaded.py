"""The last module that the server of forks imports (`fresh`): what each fork would do first is done, for all of them.

All that is imported is left out of garbage collection: every Trainer asks for one, and a fork copies what it visits.
"""

import gc

import transformers.models.llama.modeling_llama
from transformers.conversion_mapping import get_checkpoint_conversion_mapping

import student.train.ranks
import student.train.reference
import student.trainer

__all__ = ["student", "transformers"]

get_checkpoint_conversion_mapping("llama")  # the table of all models
gc.collect()
gc.freeze()
