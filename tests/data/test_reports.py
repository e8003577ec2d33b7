import pytest

from jaxdet.data.records import DataError
from jaxdet.data.reports import Report, reporting


def half(number):
    if number % 2:
        raise DataError(f"{number} is odd")
    return number // 2


def test_goes_on_after_faults():
    report = Report()
    assert report.each("a.png", [2, 3, 4, 5], half) == [1, 2]
    assert report.faults == ["3 is odd", "5 is odd"] and report.bad == {"a.png"}
    with report.noting():
        half(7)
    assert report.bad == {"a.png"}  # The last fault is of no picture.


def test_other_errors_are_not_faults():
    with pytest.raises(ZeroDivisionError), Report().noting():
        print(1 / 0)


def test_stop_lists_the_first_ten():
    report = Report()
    report.stop()
    for number in range(12):
        report.fault(f"fault {number}")
    with pytest.raises(DataError) as error:
        report.stop()
    lines = str(error.value).splitlines()
    assert lines == [*(f"fault {n}" for n in range(10)), "... and 2 more"]


def test_notes_count_and_show_places():
    report = Report()
    for number in range(7):
        report.remark("Odd things", f"/far/away/file.txt: line {number}")
    shown = ", ".join(f"file.txt: line {number}" for number in range(5))
    assert report.notes() == (f"Odd things: 7 ({shown}, ...).",)


def test_an_own_report_raises_at_the_end():
    done = []
    with pytest.raises(DataError, match="3 is odd"), reporting(None) as report:
        report.each(None, [3], half)
        done.append("the rest too")
    assert done
    given = Report()
    with reporting(given) as report:
        report.each(None, [3], half)
    assert report is given and given.faults
