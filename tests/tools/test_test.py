"""``tools/test.py``: what it says of drawings that replace each other."""

from tools.test import overwritten_drawings


def test_drawings_of_equal_names_are_counted() -> None:
    paths = ['cat/1.jpg', 'dog/1.jpg', 'dog/2.jpg', 'cow/1.jpg']

    class Samples:
        def get_data_info(self, index: int) -> dict[str, str]:
            return dict(img_path=paths[index])

        def __len__(self) -> int:
            return len(paths)

    assert overwritten_drawings(Samples()) == 2
