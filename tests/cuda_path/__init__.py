"""The code of the CUDA path, run on a CPU: Transformer Engine's real Python files with stand-ins for what is compiled.

`make test-cuda-path` runs it, in a process of its own: no other test may see Transformer Engine. What it shows: names,
shapes, marks, arguments, checkpoints and the arithmetic around the kernels. What it cannot show: a kernel's numerics,
NCCL, streams, memory, speed.

stand_in  imports Transformer Engine without its compiled extension; pytest loads it with `-p tests.cuda_path.stand_in`
shim      the forward passes of its modules in plain torch, with the contracts of the real ones asserted
"""
