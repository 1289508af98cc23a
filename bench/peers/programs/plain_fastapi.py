"""A FastAPI around torchvision as it is usually written: the model is called where the request is received."""

from __future__ import annotations

import sys
from pathlib import Path

import uvicorn
from fastapi import FastAPI, Request
from network import Segmenter

app = FastAPI()
segmenter = Segmenter(Path(sys.argv[1]))


@app.post("/segment")
async def segment(request: Request) -> dict:
    return segmenter(await request.body())


uvicorn.run(app, host="127.0.0.1", port=int(sys.argv[3]), log_level="warning")
