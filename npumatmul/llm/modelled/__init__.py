"""How large and how fast a model is on a chip, by the timing model and without its weights.

`shape` has what is asked of a model, `built` makes that of the modules that its configuration gives, `described` finds
the configuration in files or, by name, among those of `published`; `seconds` adds up what products and all between them
take, and `plan` puts that together for schemes.
"""

from npumatmul.llm.modelled.described import shape_of
from npumatmul.llm.modelled.plan import LayerPlan, ModelPlan, SchemePlan, plan_model
from npumatmul.llm.modelled.published import SHAPES
from npumatmul.llm.modelled.seconds import ModelledPass, modelled_pass, modelled_texts
from npumatmul.llm.modelled.shape import LinearShape, ModelShape

__all__ = [
    "SHAPES",
    "LayerPlan",
    "LinearShape",
    "ModelPlan",
    "ModelShape",
    "ModelledPass",
    "SchemePlan",
    "modelled_pass",
    "modelled_texts",
    "plan_model",
    "shape_of",
]
