"""A server half as a Triton model repository, for who outgrows one server."""
