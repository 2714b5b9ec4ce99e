"""The repository as a ComfyUI pack: clone it into `custom_nodes`. The nodes are in `src/wanscope/doors/comfy`."""

if __package__:  # imported as a package, which only ComfyUI does; test runners import this file by itself
    import sys
    from pathlib import Path

    _source = str(Path(__file__).resolve().parent / "src")
    if _source not in sys.path:
        sys.path.insert(0, _source)

    from wanscope.doors.comfy import NODE_CLASS_MAPPINGS, NODE_DISPLAY_NAME_MAPPINGS

    WEB_DIRECTORY = "./src/wanscope/doors/comfy/web"
    __all__ = ["NODE_CLASS_MAPPINGS", "NODE_DISPLAY_NAME_MAPPINGS", "WEB_DIRECTORY"]
