"""Sources and streams of images."""
