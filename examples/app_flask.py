"""A web service: POST an image, get its classes. One predictor serves eight threads.

    pip install "vit-edge[cpu]" flask waitress
    python examples/app_flask.py bundles/cifar10 --port 8000
    curl --data-binary @cat.jpg "http://127.0.0.1:8000/predict?top_k=3"

An image that cannot be used is answered with 400 and the reason; the service goes on.
"""

from __future__ import annotations

import argparse
import sys

import numpy as np
from flask import Flask, Response, jsonify, request
from werkzeug.exceptions import HTTPException

from vit_edge import ImageError, Predictor, UsageError

MAX_BYTES = 20 << 20  # of an encoded image


def create_app(predictor: Predictor) -> Flask:
    """Make the service around a predictor, which is thread-safe: all requests share it."""
    app = Flask(__name__)
    app.config["MAX_CONTENT_LENGTH"] = MAX_BYTES

    @app.post("/predict")
    def predict() -> Response:
        """Classify the body, or the form's file `image`, whatever its name and type say."""
        form = request.files.get("image")
        encoded = form.read() if form else request.get_data()
        if not encoded:
            raise UsageError("no image: send it as the body, or as the form's file `image`")
        return jsonify(predictor.predict(encoded, _top_k(request.args.get("top_k", "5"))).as_dict())

    @app.get("/healthz")
    def healthz() -> Response:
        """Say what answers: runtime, device, precision, threads."""
        return jsonify(dict(predictor.facts))

    @app.errorhandler(ImageError)
    @app.errorhandler(UsageError)
    def refuse(error: Exception) -> tuple[Response, int]:
        return jsonify(error=type(error).__name__, message=str(error)), 400

    @app.errorhandler(HTTPException)
    def refuse_request(error: HTTPException) -> tuple[Response, int]:
        return jsonify(error=error.name, message=error.description), error.code or 500

    return app


def _top_k(text: str) -> int:
    if not (text.isdecimal() and int(text) > 0):
        raise UsageError(f"top_k={text}: expected a whole number from 1 on")
    return int(text)


def main() -> None:
    """Serve until interrupted."""
    import waitress

    parser = argparse.ArgumentParser(description="Classify images over HTTP.")
    parser.add_argument("bundle", help="a bundle's directory")
    parser.add_argument("--host", default="127.0.0.1")
    parser.add_argument("--port", type=int, default=8000)
    parser.add_argument("--threads", type=int, default=8, help="requests answered at once")
    arguments = parser.parse_args()
    with Predictor(arguments.bundle) as predictor:
        predictor.predict(np.zeros((32, 32, 3), np.uint8))  # the first answer is the slowest
        app, host, port = create_app(predictor), arguments.host, arguments.port
        server = waitress.create_server(app, host=host, port=port, threads=arguments.threads)
        print(f"serving on http://{host}:{server.effective_port}", file=sys.stderr)
        server.run()


if __name__ == "__main__":
    main()
