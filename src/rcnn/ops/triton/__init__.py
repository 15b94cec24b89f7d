"""Triton kernels of the operators, for GPUs; they give the answers of the bodies for the CPU.

The modules import Triton, so the operators import them at the first call on a GPU. None of them has been measured on
one yet: they run under Triton's interpreter, and are compiled for real architectures, in the tests.
"""
