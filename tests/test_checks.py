import pytest
from image_files import locked_file

from datasets.files.archives import unpack
from datasets.files.plain_pickle import read_plain_dict
from datasets.image_list import read_image_list
from datasets.outliers import map_outliers
from utils.errors import InputError

READERS = {
    "array": map_outliers,
    "pickle": read_plain_dict,
    "list": lambda path: read_image_list(path, path.parent),
    "archive": lambda path: unpack(path, path.parent),
}


@pytest.mark.parametrize("reader", READERS)
def test_a_file_that_may_not_be_read_is_not_called_damaged(reader):
    with (
        locked_file("x.png") as path,
        pytest.raises(InputError, match="x.png cannot be read: Permission denied"),
    ):
        READERS[reader](path)
