//! Values that are read, and values that are refused with their place.

use super::*;

fn object(json: &str) -> Object<'_> {
    Object::from_body(json.as_bytes()).unwrap_or_else(|fault| panic!("{json}: {fault:?}"))
}

#[test]
fn faults_know_their_path() {
    let body = r#"{"a": [{"b": true}, {"b": "x"}]}"#;
    let inner = |element: Field<'_>| element.object()?.get("b", Field::boolean);
    let fault = object(body).require("a", |list| list.list(inner)).unwrap_err();
    assert_eq!(fault.path, "a[1].b");
    assert_eq!(fault.message, "expected true or false, got a string");
}

#[test]
fn the_later_of_two_counts_and_null_is_none() {
    let twice = object(r#"{"a": 1, "a" : 2 , "b": null}"#);
    assert_eq!(twice.require("a", |a| a.integer(0..=9)), Ok(2));
    assert_eq!(twice.get("b", Field::string), Ok(None));
    assert_eq!(twice.require("c", Field::string).unwrap_err().path, "c");
    assert_eq!(object("{\"\\u0061\": \"\\n\"}").require("a", Field::string).as_deref(), Ok("\n"));
}

#[test]
fn numbers_keep_to_their_range() {
    let integer = |json: &str| object(&format!("{{\"a\": {json}}}")).require("a", |a| a.integer(0..=9));
    assert_eq!(integer("9"), Ok(9));
    for bad in ["10", "-1", "1.0", "1e0", "99999999999999999999", "\"1\"", "[]"] {
        assert!(integer(bad).is_err(), "{bad}");
    }
    let number = |json: &str| object(&format!("{{\"a\": {json}}}")).require("a", |a| a.number(0.0..=2.0));
    assert_eq!(number("0.5"), Ok(0.5));
    assert_eq!(number("2"), Ok(2.0));
    assert_eq!(number("2.1").unwrap_err().message, "expected a number from 0 to 2, got 2.1");
    assert!(number("1e999").is_err());
}

#[test]
fn bodies_that_are_no_object_are_refused() {
    let fault = |body: &[u8]| Object::from_body(body).err().map(|fault| fault.message).unwrap_or_default();
    assert_eq!(fault(b" "), "the request body is empty; send a JSON object");
    assert_eq!(fault(b"[]"), "expected an object, got a list");
    assert!(fault(b"{\"a\":1").starts_with("the request body is not JSON: EOF"));
    assert!(fault(b"{} {}").starts_with("the request body is not JSON: trailing"));
    assert!(fault(b"{\"a\":\"\xff\"}").starts_with("the request body is not JSON"));
    let deep = "[".repeat(1 << 20);
    assert!(fault(deep.as_bytes()).starts_with("the request body is not JSON"));
    let keys: Vec<String> = (0..=KEYS_MAX).map(|key| format!("\"{key}\":1")).collect();
    assert_eq!(fault(format!("{{{}}}", keys.join(",")).as_bytes()), "more than 1024 keys");
}

#[test]
fn lists_are_bounded() {
    let long = format!("{{\"a\": [{}0]}}", "0,".repeat(ELEMENTS_MAX));
    let list = object(&long).require("a", |a| a.list(|_| Ok(())));
    assert_eq!(list.unwrap_err().message, format!("more than {ELEMENTS_MAX} elements"));
    assert_eq!(object(&long).require("a", Field::tokens).unwrap().len(), ELEMENTS_MAX + 1);
    assert!(object(r#"{"a": [1, -1]}"#).require("a", Field::tokens).is_err());
}

#[test]
fn lone_surrogates_are_no_text() {
    assert!(object(r#"{"a": "\ud800"}"#).require("a", Field::string).is_err());
}
