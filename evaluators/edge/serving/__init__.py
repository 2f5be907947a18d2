"""Serves a server half by the Open Inference Protocol; needs starlette and uvicorn besides what the half needs."""
