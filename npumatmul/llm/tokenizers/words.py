"""How text is cut into words before byte-level BPE, by the names that GGUF files use (``tokenizer.ggml.pre``)."""

# ruff: noqa: RUF001 (ranges of foreign characters are what is meant)

from __future__ import annotations

from dataclasses import dataclass

from tokenizers import Regex, pre_tokenizers

_CONTRACTION = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)"
_TAIL = r"|\s*[\r\n]+|\s+(?!\S)|\s+"
_UPPER, _LOWER = r"[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]", r"[\p{Ll}\p{Lm}\p{Lo}\p{M}]"


def _gpt4(digits: str, letters: str = r"\p{L}", marks: str = "", newlines: str = r"[\r\n]*") -> str:
    """The pattern of GPT-4 and its descendants, which differ in numbers and in where combining marks go."""
    word = rf"[^\r\n\p{{L}}\p{{N}}]?{letters}+"
    return _CONTRACTION + rf"|{word}|{digits}| ?[^\s\p{{L}}{marks}\p{{N}}]+{newlines}" + _TAIL


def _cased(digits: str, contraction: str = "") -> str:
    """The pattern of GPT-4o, which cuts words where capitals begin, and of Mistral's tekken."""
    first = r"[^\r\n\p{L}\p{N}]?"
    words = rf"{first}{_UPPER}*{_LOWER}+{contraction}|{first}{_UPPER}+{_LOWER}*{contraction}"
    return rf"{words}|{digits}| ?[^\s\p{{L}}\p{{N}}]+[\r\n/]*" + _TAIL


_THREE_DIGITS = r"\p{N}{1,3}"
_LLAMA3 = _gpt4(_THREE_DIGITS)
_QWEN2 = _gpt4(r"\p{N}")
_CJK = "[一-龥ࠀ-一가-퟿]+"
_DEEPSEEK_LETTERS = (
    r"\s?[A-Za-zµÀ-ÖØ-öø-ƺƼ-ƿǄ-ʓʕ-ʯͰ-ͳͶͷͻ-ͽͿΆΈ-ΊΌΎ-ΡΣ-ϵϷ-ҁҊ-ԯԱ-ՖႠ-ჅᎠ-Ᏽᏸ-ᏽᲐ-ᲺᲽ-Ჿᴀ-ᴫᵫ-ᵷᵹ-ᶚḀ-ἕἘ-Ἕἠ-ὅὈ-Ὅὐ-ὗὙὛὝ"
    r"Ὗ-\x{1F7D}ᾀ-ᾴᾶ-ᾼ\x{1FBE}ῂ-ῄῆ-ῌῐ-\x{1FD3}ῖ-\x{1FDB}ῠ-Ῥῲ-ῴῶ-ῼℂℇℊ-ℓℕℙ-ℝℤ\x{2126}ℨ\x{212A}-ℭℯ-ℴℹℼ-ℿⅅ-ⅉⅎↃ"
    r"ↄⰀ-ⱻⱾ-ⳤⳫ-ⳮⳲⳳꙀ-ꙭꚀ-ꚛꜢ-ꝯꝱ-ꞇꞋ-ꞎꭰ-ꮿﬀ-ﬆﬓ-ﬗＡ-Ｚａ-ｚ𐐀-𐑏𐒰-𐓓𐓘-𐓻𐲀-𐲲𐳀-𐳲𑢠-𑣟𞤀-𞥃]+"
)
_DEEPSEEK3 = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+"
    r"| ?[\p{P}\p{S}]+[\r\n]*" + _TAIL
)


@dataclass(frozen=True)
class PreTokenizer:
    """How text is cut into words before BPE.

    Attributes
    ----------
    patterns : tuple of str
        Regular expressions; what each matches in what the ones before it left is a word, and so is what is between.
    gpt2 : bool
        Whether GPT-2's expression cuts what they leave.
    whole_words : bool
        Whether a word that is in the vocabulary is taken as it is, without merging.
    add_bos : bool
        Whether a beginning-of-sequence token is put in front if the metadata does not say.
    """

    patterns: tuple[str, ...] = ()
    gpt2: bool = False
    whole_words: bool = False
    add_bos: bool = False

    def build(self) -> pre_tokenizers.PreTokenizer:
        """Make the pre-tokenizer of the ``tokenizers`` package."""
        steps: list[pre_tokenizers.PreTokenizer] = [
            pre_tokenizers.Split(Regex(pattern), behavior="isolated") for pattern in self.patterns
        ]
        steps.append(pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=self.gpt2))
        return pre_tokenizers.Sequence(steps)


_GPT2_WORDS = PreTokenizer(gpt2=True)
_DIGITS_AND_GPT2_WORDS = PreTokenizer((r"\p{N}",), gpt2=True)
_LLAMA3_WORDS = PreTokenizer((_LLAMA3,), whole_words=True, add_bos=True)
_QWEN2_WORDS = PreTokenizer((_QWEN2,))
_GPT4O_WORDS = PreTokenizer((_cased(_THREE_DIGITS, _CONTRACTION + "?"),))
_DEEPSEEK3_WORDS = PreTokenizer((_THREE_DIGITS, "[一-龥぀-ゟ゠-ヿ]+", _DEEPSEEK3))

PRE_TOKENIZERS: dict[str, PreTokenizer] = {
    "default": _GPT2_WORDS,
    "gpt-2": _GPT2_WORDS,
    "mpt": _GPT2_WORDS,
    "olmo": _GPT2_WORDS,
    "phi-2": _GPT2_WORDS,
    "jais": _GPT2_WORDS,
    "trillion": _GPT2_WORDS,
    "granite-docling": _GPT2_WORDS,
    "exaone4": _GPT2_WORDS,
    "mellum": _GPT2_WORDS,
    "codeshell": _DIGITS_AND_GPT2_WORDS,
    "command-r": _DIGITS_AND_GPT2_WORDS,
    "exaone": _DIGITS_AND_GPT2_WORDS,
    "minerva-7b": _DIGITS_AND_GPT2_WORDS,
    "refact": _DIGITS_AND_GPT2_WORDS,
    "smollm": _DIGITS_AND_GPT2_WORDS,
    "starcoder": _DIGITS_AND_GPT2_WORDS,
    "falcon": PreTokenizer(
        (
            r"[\p{P}\$\+<=>\^~\|`]+",
            r"'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+"
            r"| ?[^\s\p{L}\p{N}]+|\s+(?!\S)",
            "[0-9][0-9][0-9]",
        )
    ),
    "llama3": _LLAMA3_WORDS,
    "llama-v3": _LLAMA3_WORDS,
    "llama-bpe": _LLAMA3_WORDS,
    "falcon3": _LLAMA3_WORDS,
    "falcon-h1": _LLAMA3_WORDS,
    "pixtral": _LLAMA3_WORDS,
    "lfm2": _LLAMA3_WORDS,
    "dbrx": PreTokenizer((_LLAMA3,)),
    "smaug-bpe": PreTokenizer((_LLAMA3,)),
    "chatglm-bpe": PreTokenizer((_LLAMA3,)),
    "glm4": PreTokenizer((_LLAMA3,), whole_words=True),
    "qwen2": _QWEN2_WORDS,
    "deepseek-r1-qwen": _QWEN2_WORDS,
    "stablelm2": _QWEN2_WORDS,
    "hunyuan": _QWEN2_WORDS,
    "megrez": _QWEN2_WORDS,
    "qwen35": PreTokenizer((_gpt4(r"\p{N}", r"[\p{L}\p{M}]", r"\p{M}"),)),
    "gpt-4o": _GPT4O_WORDS,
    "llama4": _GPT4O_WORDS,
    "kanana2": _GPT4O_WORDS,
    "tekken": PreTokenizer((_cased(r"\p{N}"),), whole_words=True, add_bos=True),
    "deepseek-llm": PreTokenizer(
        (r"[\r\n]", _DEEPSEEK_LETTERS, r"\s?[!-/:-~！-／：-～‘-‟\x{3000}-。]+", r"\s+$", _CJK, r"\p{N}+")
    ),
    "deepseek-coder": PreTokenizer((r"[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+", _CJK, r"\p{N}")),
    "deepseek-v3": _DEEPSEEK3_WORDS,
    "hunyuan-dense": _DEEPSEEK3_WORDS,
}
"""Pre-tokenizers by ``tokenizer.ggml.pre``."""
