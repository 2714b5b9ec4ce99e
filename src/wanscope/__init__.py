"""wanscope opens up Wan text-to-video diffusion transformers."""

__version__ = "0.1.0"
