"""The service around `model`: HTTP in, HTTP out. It knows requests, queues and time, and no network layers."""
