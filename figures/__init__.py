"""The paper's figures as studies: one module a figure, on the public library alone."""
