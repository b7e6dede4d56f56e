//! Who may use the console.

use serde_json::json;

use crate::{Console, row};

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
    console
        .browser
        .wait("//*[@role='alert'][contains(., 'token')][not(contains(., 'is one word'))]");
    console.browser.script("document.querySelector('[name=token]').value = '';", &json!([]));
    console.sign_in(&console.token("viewer"));

    // It is kept for this tab alone.
    console.browser.reload();
    console.wait_for_status("live");
    let kept =
        console.browser.value("[sessionStorage.length, localStorage.length, document.cookie]");
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
    console
        .browser
        .wait("//button[@disabled][contains(., 'Cancel')][contains(., 'needs operator')]");
    console.check_quiet();
}

#[test]
fn an_admin_sees_tokens_and_revokes_one_after_a_question() {
    let Some(console) = Console::signed_in(&["a"], "admin") else { return };
    console.go("access");
    let id = console.mesh.json(&["token", "create", "--api", "--role", "viewer"])["id"].to_string();
    console.wait_for_row(&id, "usable");
    console.browser.click(&format!("{}//button", row(&id, "usable")));
    console.browser.wait(&format!("//dialog[@open]//code[.='podmesh token revoke {id}']"));
    console.browser.click("//dialog//button[.='No, go back']");
    console.browser.wait("/html[not(//dialog[@open])]");
    assert_eq!(console.changes(), Vec::<String>::new());
    console.browser.click(&format!("{}//button", row(&id, "usable")));
    console.browser.click("//dialog//button[.='Revoke the token']");
    console.wait_for_row(&id, "revoked");
    assert_eq!(console.changes(), [format!("DELETE /api/v1/tokens/{id}")]);
    console.check_quiet();
}
