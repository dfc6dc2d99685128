"""Names of languages, and the codes that models write them with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable

__all__ = ["language_code", "language_name"]

_LISTED = """
    afrikaans:af albanian:sq amharic:am arabic:ar armenian:hy assamese:as azerbaijani:az bashkir:ba basque:eu
    belarusian:be bengali:bn bosnian:bs breton:br bulgarian:bg cantonese:yue catalan:ca chinese:zh croatian:hr
    czech:cs danish:da dutch:nl english:en estonian:et faroese:fo finnish:fi french:fr galician:gl georgian:ka
    german:de greek:el gujarati:gu haitian_creole:ht hausa:ha hawaiian:haw hebrew:he hindi:hi hungarian:hu
    icelandic:is indonesian:id italian:it japanese:ja javanese:jw kannada:kn kazakh:kk khmer:km korean:ko
    lao:lo latin:la latvian:lv lingala:ln lithuanian:lt luxembourgish:lb macedonian:mk malagasy:mg malay:ms
    malayalam:ml maltese:mt maori:mi marathi:mr mongolian:mn myanmar:my nepali:ne norwegian:no nynorsk:nn
    occitan:oc pashto:ps persian:fa polish:pl portuguese:pt punjabi:pa romanian:ro russian:ru sanskrit:sa
    serbian:sr shona:sn sindhi:sd sinhala:si slovak:sk slovenian:sl somali:so spanish:es sundanese:su
    swahili:sw swedish:sv tagalog:tl tajik:tg tamil:ta tatar:tt telugu:te thai:th tibetan:bo turkish:tr
    turkmen:tk ukrainian:uk urdu:ur uzbek:uz vietnamese:vi welsh:cy yiddish:yi yoruba:yo
"""

_CODES: dict[str, str] = {
    name.replace("_", " "): code for name, _, code in (each.partition(":") for each in _LISTED.split())
}
_NAMES = {code: name for name, code in _CODES.items()}
#: Other names of some of them.
_CODES |= {
    "burmese": "my",
    "castilian": "es",
    "flemish": "nl",
    "haitian": "ht",
    "letzeburgesch": "lb",
    "mandarin": "zh",
    "moldavian": "ro",
    "moldovan": "ro",
    "panjabi": "pa",
    "pushto": "ps",
    "sinhalese": "si",
    "valencian": "ca",
}


def language_name(code: str) -> str:
    """The English name of a language; the code itself where it is not known.

    Examples
    --------
    >>> language_name("yue")
    'cantonese'
    """
    return _NAMES.get(code, code)


def language_code(language: str, known: Iterable[str]) -> str:
    """The code of a language that a model knows.

    Parameters
    ----------
    language : str
        A code or an English name, in whatever case.
    known : iterable of str
        Codes that the model knows.

    Raises
    ------
    ValueError
        If it is none of them.

    Examples
    --------
    >>> language_code("German", ["en", "de"])
    'de'
    """
    codes = set(known)
    wanted = language.strip().lower().removeprefix("<|").removesuffix("|>")
    code = _CODES.get(wanted, wanted)
    if code in codes:
        return code
    names = [*codes, *(name for name, each in _CODES.items() if each in codes)]
    near = difflib.get_close_matches(wanted, names, 1)
    hint = f"; perhaps {near[0]!r} is meant" if near else ""
    raise ValueError(
        f"language is {language!r}, which the model does not know{hint}; it knows {', '.join(sorted(codes))}"
    )
