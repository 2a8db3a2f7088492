"""What is measured: the catalogue's shapes that take a software adapter less than a second."""

from __future__ import annotations

import re
from dataclasses import dataclass


@dataclass(frozen=True)
class Case:
    """Attention over dense tensors."""

    shape: str  # BxHxSxD, where H may be H/Hkv and S may be Sq/Skv
    dtype: str
    causal: bool

    @classmethod
    def parse(cls, text):
        """From `BxHxSxD,dtype[,causal]`, as `flashtile bench --cases` reads it."""
        sizes = r"\d+x\d+(?:/\d+)?x\d+(?:/\d+)?x\d+"
        match = re.fullmatch(rf"({sizes}),(f32|f16|bf16)(,causal)?", text)
        if match is None:
            raise ValueError(f"`{text}` is not BxHxSxD,dtype[,causal]")
        return cls(match.group(1), match.group(2), match.group(3) is not None)

    def __str__(self):
        return f"{self.shape},{self.dtype}{',causal' if self.causal else ''}"

    def arguments(self, backend, kernel):
        """Of the program, for this case alone."""
        arguments = ["bench", "--json", "--shape", self.shape, "--dtype", self.dtype]
        arguments += ["--backend", backend, "--kernel", kernel]
        return arguments + (["--causal"] if self.causal else [])


DEFAULT_CASES = [
    Case.parse(text)
    for text in (
        "2x12x89x32,f32",
        "1x4x256x64,f32,causal",
        "1x4x512x64,f32,causal",
        "8x12x197x64,f32",
        "8x12x197x64,f16",
        "1x8x1024x64,f32",
        "1x8x1024x64,f32,causal",
        "1x8x1024x64,f16,causal",
        "1x4x1024x128,f32,causal",
        "4x12x1024x64,f32,causal",
    )
]
