"""Patch embeddings as matrix products.

Qwen2-VL and its successors embed patches that their processor has cut already: a `Conv3d` whose
kernel covers its whole input. That is a matrix product, and as such it runs. cuDNN has no good
bfloat16 kernel for it: 10 to 50,000 times slower is reported, or no gradient at all
(pytorch/pytorch#174051, huggingface/transformers#45750).
"""

from types import MethodType
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def as_matrix_products(model: Any) -> None:
    """Compute every patch embedding of `model` by a matrix product, forward and backward.

    The modules stay, and with them the weights' names and the hooks by which ZeRO stage 3 gathers
    them; their forward alone is another. Values differ by rounding.
    """
    import torch

    for module in model.modules():
        if isinstance(module, torch.nn.Conv3d) and _cuts_patches(module):
            # The module's own, before its class's.
            module.__dict__["forward"] = MethodType(_embedded, module)


def _cuts_patches(convolution: "torch.nn.Conv3d") -> bool:
    """Whether patches lie side by side: the kernel moves by its own size over all channels."""
    return (
        convolution.kernel_size == convolution.stride
        and convolution.padding == (0, 0, 0)
        and convolution.dilation == (1, 1, 1)
        and convolution.groups == 1
    )


def _embedded(convolution: "torch.nn.Conv3d", pixels: "torch.Tensor") -> "torch.Tensor":
    """Return (patches, width, 1, 1, 1) of `pixels` (patches, channels, *kernel), and of an input
    of many patches what the convolution gives.
    """
    import torch

    if pixels.shape[2:] != convolution.kernel_size:
        return torch.nn.Conv3d.forward(convolution, pixels)
    embedded = torch.nn.functional.linear(
        pixels.flatten(1), convolution.weight.flatten(1), convolution.bias
    )
    return embedded[:, :, None, None, None]
