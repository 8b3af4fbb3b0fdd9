"""Ships the edit: writes checkpoint and ONNX into one artifact folder; holds the command line."""
