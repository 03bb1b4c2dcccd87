"""The networks: layers, Transformer, Gemini, LSTM. They know nothing of files, training or ONNX."""
