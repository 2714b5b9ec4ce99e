"""The doors: what people and other programs come in by. Nothing below this package knows that one exists."""
