"""How large and how fast a language model is on a chip, by the timing model and without its weights.

`shape` has the dimensions of a model and a table of some by name, `described` reads them from files, `seconds` adds up
what its products and all between them take, and `plan` puts that together for schemes.
"""

from npumatmul.llm.modelled.described import shape_of
from npumatmul.llm.modelled.plan import LayerPlan, ModelPlan, SchemePlan, plan_model
from npumatmul.llm.modelled.seconds import ModelledPass, modelled_pass
from npumatmul.llm.modelled.shape import SHAPES, LinearShape, ModelShape

__all__ = [
    "SHAPES",
    "LayerPlan",
    "LinearShape",
    "ModelPlan",
    "ModelShape",
    "ModelledPass",
    "SchemePlan",
    "modelled_pass",
    "plan_model",
    "shape_of",
]
