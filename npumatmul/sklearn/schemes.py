"""The schemes that estimators are offered in."""

from __future__ import annotations

__all__ = ["HIGH", "SCHEMES", "check_estimator_scheme"]

#: Of weights. Distances are made in the second one, whatever the scheme: they cancel.
SCHEMES = ("w16a16", "w16a16_high", "w8a8")
HIGH = "w16a16_high"


def check_estimator_scheme(scheme: object) -> str:
    """The scheme, if it is one.

    Raises
    ------
    ValueError
    """
    if not isinstance(scheme, str) or scheme not in SCHEMES:
        raise ValueError(f"scheme is {scheme!r}; of estimators it can be {', '.join(map(repr, SCHEMES))}")
    return scheme
