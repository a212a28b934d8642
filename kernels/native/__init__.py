"""Matching and merging in C++ for processors, as a library of operators for ONNX Runtime; `build` compiles it.

`core.h` is what adapters for runtimes call, `ort.cpp` the one there is. `match.h`, `split.h` and `merge.h` hold an
operator each; `level.cpp` compiles them once for each level of a processor's instructions, and `core.cpp` chooses.
"""
