//! Who may use the console.

use serde_json::json;

use crate::Console;

#[test]
fn a_wrong_token_is_refused_and_a_revoked_one_leads_back() {
    let Some(console) = Console::start(&["a"]) else { return };
    let field = console.browser.wait("//input[@name='token']");
    field.type_text("not a token");
    console.browser.click("//button[.='Sign in']");
    console.browser.wait_for_text("This is not a token");
    console.browser.script("document.querySelector('[name=token]').value = '';", &json!([]));
    field.type_text("podmesh-unknown");
    console.browser.click("//button[.='Sign in']");
    console.browser.wait("//*[@role='alert'][contains(., 'token')][not(contains(., 'is one word'))]");
    console.browser.script("document.querySelector('[name=token]').value = '';", &json!([]));
    console.sign_in(&console.token("viewer"));

    // It is kept for this tab alone.
    console.browser.reload();
    console.wait_for_status("live");
    let kept = console.browser.value("[sessionStorage.length, localStorage.length, document.cookie]");
    assert_eq!(kept, json!([1, 0, ""]));

    let tokens = console.mesh.json(&["token"]);
    let tokens = tokens["tokens"].as_array().unwrap();
    let id = tokens.iter().find(|token| token["api"] == true).unwrap()["id"].to_string();
    console.mesh.ok(&["token", "revoke", &id]);
    // The stream ends; the next request is refused.
    console.run("any", "true");
    console.browser.wait("//input[@name='token']");
    assert_eq!(console.browser.value("sessionStorage.length"), 0);
}

#[test]
fn a_viewer_sees_which_role_a_change_needs() {
    let Some(console) = Console::signed_in(&["a"], "viewer") else { return };
    let job = console.run("runs", "sleep 600");
    console.go("nodes");
    console.browser.wait("//button[@disabled][contains(., 'Drain')][contains(., 'needs admin')]");
    console.go(&format!("jobs/{job}"));
    console.browser.wait("//button[@disabled][contains(., 'Cancel')][contains(., 'needs operator')]");
    console.check_quiet();
}
