"""Compile a Triton kernel for GPUs on a machine without one. For scripts that run in a process with Triton."""

import re
import subprocess
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.backends.nvidia.compiler import get_ptxas
from triton.compiler import ASTSource

CHIPS = {"sm_80": 80, "sm_89": 89, "sm_90a": 90}


def compiled_for(chip: str, kernel: Any, types: Mapping[str, str], constants: Mapping[str, Any]) -> dict[str, int]:
    """Return the registers, bytes of spills and of shared memory of a kernel whose pointers and strides are aligned,
    and the conversions that do not round to the nearest, by the types of its arguments in order, and its constants
    with Triton's options."""
    options = {name: value for name, value in constants.items() if name not in kernel.arg_names}
    shape = {name: value for name, value in constants.items() if name in kernel.arg_names}
    signature = {**types, **dict.fromkeys(shape, "constexpr")}
    aligned = [place for place, kind in enumerate(signature.values()) if kind[:1] == "*" or kind == "i32"]
    source = ASTSource(kernel, signature, shape, {(place,): [["tt.divisibility", 16]] for place in aligned})
    code = triton.compile(source, target=GPUTarget("cuda", CHIPS[chip], 32), options=options)
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "kernel.ptx").write_text(code.asm["ptx"])
        command = [get_ptxas(CHIPS[chip]).path, "-v", f"--gpu-name={chip}", "kernel.ptx", "-o", "kernel.cubin"]
        told = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=True).stderr
    [registers] = re.findall(r"Used (\d+) registers", told)
    spills = sum(map(int, re.findall(r"(\d+) bytes spill", told)))
    cut = len(re.findall(r"cvt\.r[zmp]\.", code.asm["ptx"]))
    return {"registers": int(registers), "spills": spills, "shared": code.metadata.shared, "cut": cut}
