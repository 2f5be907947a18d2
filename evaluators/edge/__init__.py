"""What runs on the device, and its counterpart on the server.

Needs Python 3.9, numpy, pillow and onnxruntime; never torch. This folder is copied as it stands into every exported
bundle, and the same copy is what gets measured, so the code that was timed is the code that ships.
"""
