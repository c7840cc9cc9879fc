"""The demo's images, drawn."""
