"""`import plait.hf`: transformers' Auto classes load what `plait export --to hf` wrote for families of our own (molmo).

That is all it does. Gemma 3 exports of theworld are transformers' own and need no import.
"""

from plait.families.molmo.hf import MolmoConfig, MolmoForCausalLM, MolmoProcessor

__all__ = ["MolmoConfig", "MolmoForCausalLM", "MolmoProcessor"]
