//! The keyboard.

use podmesh_tests::wait::until_true;

use crate::Console;

const ESCAPE: &str = "\u{e00c}";
const ENTER: &str = "\u{e007}";

#[test]
fn keys_find_go_through_rows_open_and_help() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let jobs = [1, 2, 3].map(|_| console.run("job", "true"));
    console.go("jobs");
    console.wait_for_row(&jobs[2].to_string(), "succeeded");
    let browser = &console.browser;
    let focus =
        || browser.value("document.activeElement.textContent || document.activeElement.tagName");
    browser.press("j");
    assert_eq!(focus(), jobs[2].to_string(), "the first row");
    browser.press("j");
    browser.press("j");
    browser.press("j");
    assert_eq!(focus(), jobs[0].to_string(), "the last row");
    browser.press("k");
    assert_eq!(focus(), jobs[1].to_string());

    browser.press("/");
    assert_eq!(browser.value("document.activeElement.dataset.find"), "true");
    browser.press("j");
    assert_eq!(browser.value("document.activeElement.value"), "j", "in a field, it is a letter");
    browser.press(ESCAPE);
    browser.press("?");
    browser.wait("//dialog[@open][contains(., 'next row')]");
    browser.press(ESCAPE);
    browser.wait("/html[not(//dialog[@open])]");
    browser.press("j");
    browser.press(ENTER);
    until_true("the job is open", || {
        browser.value("location.hash") == format!("#/jobs/{}", jobs[2])
    });
    // The focus is at the heading of the new page, for screen readers.
    until_true("the heading has the focus", || {
        browser.value("document.activeElement.tagName") == "H1"
    });
    console.check_quiet();
}
