"""A server that speaks KServe's protocol, version 2: Triton, MLServer, OVMS, KServe itself."""
