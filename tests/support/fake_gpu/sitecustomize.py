"""Python runs this at its start where the folder is on its path: children get the fake GPU, too."""

import fake_cuda

fake_cuda.install()
