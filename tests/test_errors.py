import pytest
from torch.utils.data import DataLoader, Dataset

from utils.errors import PansError, exit_code


def fail(error: Exception) -> None:
    raise error


def test_a_command_without_an_error_ends_with_0() -> None:
    assert exit_code(lambda: None) == 0


@pytest.mark.parametrize(
    ("error", "line"),
    [
        (PansError("x.pth is missing; fetch it"), "error: x.pth is missing; fetch it\n"),
        (
            PermissionError(13, "Permission denied", "a.tar"),
            "error: [Errno 13] Permission denied: 'a.tar'; fix it and run the same command again\n",
        ),
    ],
)
def test_user_errors_are_one_line_and_exit_code_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: fail(error)) == 2
    assert capsys.readouterr().err == line


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\nb.png is bad", r"a\nb.png is bad"),
        ("a\u2028b\x85c\x1b[2Jd", r"a\u2028b\x85c\x1b[2Jd"),
        ("undecodable \udcff", r"undecodable \udcff"),
        ("für 東京", "für 東京"),
    ],
)
def test_an_error_stays_one_line_whatever_it_quotes(text: str, shown: str) -> None:
    assert str(PansError(text)) == shown


class Named(Dataset[int]):
    def __len__(self) -> int:
        return 1

    def __getitem__(self, index: int) -> int:
        raise PansError("a\nb.png is bad; look")


def test_an_error_of_a_loader_process_is_its_one_line() -> None:
    with pytest.raises(PansError) as caught:
        next(iter(DataLoader(Named(), num_workers=1)))
    assert "Original Traceback" in caught.value.args[0]
    assert str(caught.value) == r"a\nb.png is bad; look"


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: fail(ZeroDivisionError()))
