"""Layers of transformers, on the NPU: each usable alone, with PyTorch's names for parameters.

>>> import numpy as np
>>> from npumatmul import nn
>>> layer = nn.Linear.from_arrays(np.eye(3), np.ones(3), scheme="w16a16")
>>> layer(np.arange(3, dtype=np.float32))
array([1., 2., 3.], dtype=float32)
"""

from npumatmul.nn.attend import scaled_dot_product_attention
from npumatmul.nn.attention import Attention
from npumatmul.nn.batch_norm import BatchNorm1d, BatchNorm2d, fold_batch_norm
from npumatmul.nn.block import TransformerBlock
from npumatmul.nn.cache import CacheFullError, KVCache
from npumatmul.nn.cache_batch import CacheBatch
from npumatmul.nn.cache_rows import CachedRows
from npumatmul.nn.conv_transpose import ConvTranspose1d, ConvTranspose2d
from npumatmul.nn.convolution import Conv1d, Conv2d
from npumatmul.nn.cross_attention import CrossAttention, KeysAndValues
from npumatmul.nn.delta_net import GatedDeltaNet
from npumatmul.nn.delta_rule import gated_delta_rule
from npumatmul.nn.embedding import Embedding
from npumatmul.nn.encoder_block import EncoderBlock
from npumatmul.nn.expert_names import unstacked
from npumatmul.nn.experts import MixtureOfExperts, Router
from npumatmul.nn.hifigan import HifiGan
from npumatmul.nn.linear import Linear, LinearGroup
from npumatmul.nn.mlp import MLP, activate
from npumatmul.nn.module import LoadResult, Module
from npumatmul.nn.norm import LayerNorm, RMSNorm
from npumatmul.nn.pooling import pool
from npumatmul.nn.prefill import AttentionPlan, plan_attention
from npumatmul.nn.product import FloatProduct, Pack, PackedProduct, Product
from npumatmul.nn.residency import BroughtProduct, Residency
from npumatmul.nn.rope import RoPE
from npumatmul.nn.short_conv import ShortConv
from npumatmul.nn.weight_norm import fold_weight_norm

__all__ = [
    "MLP",
    "Attention",
    "AttentionPlan",
    "BatchNorm1d",
    "BatchNorm2d",
    "BroughtProduct",
    "CacheBatch",
    "CacheFullError",
    "CachedRows",
    "Conv1d",
    "Conv2d",
    "ConvTranspose1d",
    "ConvTranspose2d",
    "CrossAttention",
    "Embedding",
    "EncoderBlock",
    "FloatProduct",
    "GatedDeltaNet",
    "HifiGan",
    "KVCache",
    "KeysAndValues",
    "LayerNorm",
    "Linear",
    "LinearGroup",
    "LoadResult",
    "MixtureOfExperts",
    "Module",
    "Pack",
    "PackedProduct",
    "Product",
    "RMSNorm",
    "Residency",
    "RoPE",
    "Router",
    "ShortConv",
    "TransformerBlock",
    "activate",
    "fold_batch_norm",
    "fold_weight_norm",
    "gated_delta_rule",
    "plan_attention",
    "pool",
    "scaled_dot_product_attention",
    "unstacked",
]
