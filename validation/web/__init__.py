"""`saeuron page`: an artifact as a static page that draws in the browser, by ONNX Runtime for the web. Needs no torch."""
