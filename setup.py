"""Builds rga_fast. `kernels/` is installed as the package `rga_fast.kernels`."""

from setuptools import setup

setup(
    packages=["rga_fast", "rga_fast.reid", "rga_fast.kernels"],
    package_dir={"rga_fast": "rga_fast", "rga_fast.kernels": "kernels"},
)
