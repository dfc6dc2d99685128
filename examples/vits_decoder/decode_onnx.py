"""The same decoder as an ONNX model, as text-to-speech programs have it: any number of frames in one session.

    python examples/vits_decoder/decode_onnx.py                a random decoder, which PyTorch exports
    python examples/vits_decoder/decode_onnx.py DECODER.onnx   one of your own

It is given `z` (1, channels, T), `y_mask` (1, 1, T) and `g` (1, width, 1), those of them that it asks for.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import warnings
from pathlib import Path

import numpy as np
import onnxruntime

from npumatmul.onnx import InferenceSession

FRAMES = (1, 17, 20, 24, 50, 55, 56, 130)


def export(path: Path) -> Path:
    """A random decoder of few channels, by transformers and PyTorch."""
    import torch
    from transformers import VitsConfig
    from transformers.models.vits.modeling_vits import VitsHifiGan

    class Decoder(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            sizes = {"flow_size": 192, "upsample_initial_channel": 128, "speaker_embedding_size": 512}
            sizes |= {"upsample_rates": [16, 16], "upsample_kernel_sizes": [32, 32]}
            blocks = {"resblock_kernel_sizes": [3, 5], "resblock_dilation_sizes": [[1, 3], [1, 3]]}
            self.generator = VitsHifiGan(VitsConfig(**sizes, **blocks)).eval()

        def forward(self, z: torch.Tensor, y_mask: torch.Tensor, g: torch.Tensor) -> torch.Tensor:
            return self.generator(z * y_mask, g)

    torch.manual_seed(0)
    example = torch.randn(1, 192, 9), torch.ones(1, 1, 9), torch.randn(1, 512, 1)
    torch.onnx.export(
        Decoder().eval(), example, str(path), input_names=["z", "y_mask", "g"], output_names=["audio"], dynamo=False,
        dynamic_axes={"z": {2: "T"}, "y_mask": {2: "T"}, "audio": {2: "L"}}, opset_version=17,
    )  # fmt: skip
    return path


def main() -> None:
    """Decode with ONNX Runtime alone, and with products on the NPU."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", nargs="?", type=Path)
    parser.add_argument("--scheme", default="w16a16")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    with tempfile.TemporaryDirectory() as folder:
        path = str(options.model or export(Path(folder) / "decoder.onnx"))
        session, alone = InferenceSession(path, scheme=options.scheme), onnxruntime.InferenceSession(path)
        shapes = {each.name: each.shape for each in session.get_inputs()}
        if "z" not in shapes or set(shapes) - {"z", "y_mask", "g"}:
            sys.exit(f"{path} has inputs {', '.join(shapes)}; z, y_mask and g are known here")
        rng = np.random.default_rng(2)
        for frames in FRAMES:
            given = {"z": rng.standard_normal((1, shapes["z"][1], frames), np.float32)}
            if "y_mask" in shapes:
                given["y_mask"] = np.ones((1, 1, frames), np.float32)
            if "g" in shapes:
                given["g"] = rng.standard_normal((1, shapes["g"][1], 1), np.float32)
            (made, *_), (wanted, *_) = session.run(None, given), alone.run(None, given)
            error = np.abs(made - wanted).std() / wanted.std()
            print(f"{frames:5} frames: {made.size:6} values, off by {error:.1e} of ONNX Runtime's")
        print(f"on the NPU: {len(session.report)} nodes with products")
        for name, why in session.report.left.items():
            print(f"on the CPU: {name}: {why}")


if __name__ == "__main__":
    main()
