import pytest

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
            "error: [Errno 13] Permission denied: 'a.tar'; mend it and run the same command "
            "again\n",
        ),
    ],
)
def test_what_a_user_can_mend_is_one_line_and_exit_code_2(
    error: Exception, line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert exit_code(lambda: fail(error)) == 2
    assert capsys.readouterr().err == line


def test_a_fault_of_the_program_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError):
        exit_code(lambda: fail(ZeroDivisionError()))
