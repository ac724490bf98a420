//! The telemetry listener: who may ask, pages of the ledger that prove themselves, nothing of what tenants say, and no harm
//! by who asks too much.

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use rustls::SignatureScheme;
use serde_json::{Value, json};
use std::fs;
use tests::{Client, Ember, Function, chat, until};

const LISTEN: &str = "telemetry_listen = \"127.0.0.1:0\"\ntelemetry_name = \"shop-7\"\n";
const LEDGER: &str = "/ember/v1/telemetry/ledger";
const INVENTORY: &str = "/ember/v1/telemetry/inventory";

/// An authority of the test's own.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let pem = params.self_signed(&key).unwrap().pem();
        Self { pem, issuer: Issuer::new(params, key) }
    }

    /// A client's certificate and key.
    fn client(&self) -> [String; 2] {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::default();
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        [params.signed_by(&key, &self.issuer).unwrap().pem(), key.serialize_pem()]
    }
}

fn file(ember: &Ember, name: &str) -> String {
    fs::read_to_string(ember.data().join("telemetry").join(name)).unwrap_or_else(|error| panic!("{name}: {error}"))
}

/// The certificate that the box made for its operator.
fn operators(ember: &Ember) -> [String; 2] {
    ["client.pem", "client.key"].map(|name| file(ember, name))
}

/// A client of the telemetry listener that shows this.
fn telemetry(ember: &Ember, shown: Option<&[String; 2]>) -> Client {
    let base = format!("https://{}", file(ember, "address").trim());
    let shown = shown.map(|[certificate, key]| [certificate.as_str(), key.as_str()]);
    Client::with_certificate(&base, file(ember, "ca.pem").as_bytes(), shown, None)
}

/// Checks a page by itself: its signature, and that its lines lead from `previous` to `chain`.
#[track_caller]
fn verify(page: &Value, public: &[u8]) {
    let text = |field: &str| page[field].as_str().unwrap_or_else(|| panic!("{field} in {page}")).to_owned();
    let mut chain: [u8; 32] = unhex(&text("previous")).try_into().unwrap();
    for line in page["lines"].as_array().unwrap() {
        let mut fields = line.as_str().unwrap().rsplitn(3, '\t');
        let (_sum, told, covered) = (fields.next().unwrap(), fields.next().unwrap(), fields.next().unwrap());
        chain = *blake3::Hasher::new().update(&chain).update(covered.as_bytes()).finalize().as_bytes();
        assert_eq!(unhex(told), chain, "{line}");
    }
    assert_eq!(unhex(&text("chain")), chain);
    let parts = ["box", "from", "next", "previous", "chain"].map(|field| text(field) + "\n").concat();
    let signed = format!("ember-ledger-page-v1\n{parts}");
    assert!(is_signed(public, signed.as_bytes(), &unhex(&text("signature"))), "{signed}");
    assert!(!is_signed(public, signed.replace("shop-7", "shop-8").as_bytes(), &unhex(&text("signature"))));
}

fn is_signed(public: &[u8], message: &[u8], signature: &[u8]) -> bool {
    let known = rustls::crypto::ring::default_provider().signature_verification_algorithms.mapping;
    let (_, ways) = known.iter().find(|(scheme, _)| *scheme == SignatureScheme::ED25519).unwrap();
    ways[0].verify_signature(public, message, signature).is_ok()
}

fn unhex(text: &str) -> Vec<u8> {
    (0..text.len()).step_by(2).map(|at| u8::from_str_radix(&text[at..at + 2], 16).unwrap()).collect()
}

/// All pages from a cursor on, each checked, and that each follows from the one before.
fn pull(client: &Client, public: &[u8], mut cursor: String) -> Vec<Value> {
    let mut pages: Vec<Value> = Vec::new();
    loop {
        let page = client.get(&format!("{LEDGER}?cursor={cursor}")).expect(200).json();
        verify(&page, public);
        if let Some(last) = pages.last() {
            assert_eq!((&last["chain"], &last["next"]), (&page["previous"], &json!(cursor)));
        }
        if page["more"] == false {
            return pages;
        }
        cursor = page["next"].as_str().unwrap().to_owned();
        pages.push(page);
    }
}

/// The closed records of pages.
fn closed(pages: &[Value]) -> Vec<Value> {
    let lines = pages.iter().flat_map(|page| page["lines"].as_array().unwrap());
    let entries = lines.map(|line| line.as_str().unwrap().split_once('\t').unwrap().0);
    let entries = entries.map(|json| serde_json::from_str::<Value>(json).unwrap());
    entries.filter(|entry| entry["stage"] == "closed").map(|mut entry| entry["record"].take()).collect()
}

#[test]
fn only_who_shows_a_certificate_of_the_right_authority_is_answered() {
    let (fleet, stranger) = (Authority::new(), Authority::new());
    let folder = tempfile::tempdir().unwrap();
    let authority = folder.path().join("fleet.pem");
    fs::write(&authority, &fleet.pem).unwrap();
    let ember = Ember::start_with(&format!("{LISTEN}telemetry_ca = \"{}\"\n", authority.display()));
    let member = telemetry(&ember, Some(&fleet.client()));
    assert_eq!(member.get("/health").expect(200).json(), json!({"status": "ok", "box": "shop-7"}));
    for refused in [None, Some(stranger.client()), Some(operators(&ember))] {
        let refused = telemetry(&ember, refused.as_ref()).try_get("/health");
        assert!(refused.is_err(), "{refused:?}");
    }
    assert_eq!(member.get("/health").expect(200).status, 200, "nobody else was harmed");
    member.post(LEDGER, &json!({})).error(405);
    member.get("/v1/models").error(404);
    member.get("/ember/v1/functions").error(404);
    ember.stop();
}

#[test]
fn pages_chain_are_signed_and_hold_what_the_ledger_has() {
    let mut ember = Ember::start_with(LISTEN).with(&Function::named("assistant").system("SYSTEM-WORDS"));
    let shown = operators(&ember);
    let asked = chat("assistant", "PROMPT-WORDS", json!({"max_tokens": 12}));
    let said = ember.client().ask(&asked).text();
    for _ in 0..40 {
        let request = json!({"model": "assistant", "content": "PROMPT-WORDS"});
        ember.client().post("/tokenize", &request).expect(200);
    }
    until("the ledger has all", || (ember.ledger().len() == 41).then_some(()));

    let fleet = telemetry(&ember, Some(&shown));
    let inventory = fleet.get(INVENTORY).expect(200).json();
    let public = unhex(inventory["key"].as_str().unwrap());
    let pages = pull(&fleet, &public, "0:0".to_owned());
    assert!(pages.len() > 1, "{} pages", pages.len());
    assert_eq!(closed(&pages), ember.ledger());
    assert_eq!(pages[0]["previous"], json!("0".repeat(64)), "from the beginning");
    let again = pull(&fleet, &public, pages[0]["next"].as_str().unwrap().to_owned());
    assert_eq!(again, pages[1..], "a pull that was cut goes on");

    let next = pages.last().unwrap()["next"].as_str().unwrap();
    let (segment, offset) = next.split_once(':').unwrap();
    let beyond = format!("{segment}:{}", offset.parse::<u64>().unwrap() + 1);
    fleet.get(&format!("{LEDGER}?cursor={beyond}")).error(409);
    fleet.get(&format!("{LEDGER}?cursor={segment}:3")).error(400);
    fleet.get(&format!("{LEDGER}?cursor=all")).error(400);

    assert_eq!((&inventory["box"], &inventory["boots"].as_array().unwrap().len()), (&json!("shop-7"), &1));
    assert_eq!(inventory["functions"][0]["name"], "assistant");
    assert_eq!(inventory["functions"][0]["tier"], "running");
    assert!(inventory["disk"]["free_bytes"].as_u64() > Some(0));
    let processors = fs::read_to_string("/proc/cpuinfo").unwrap().matches("\nprocessor").count() as u64 + 1;
    assert_eq!(inventory["hardware"]["cores"], processors);
    let admin = ember.admin_key();
    for path in ["/health", "/metrics", INVENTORY, LEDGER] {
        let body = String::from_utf8(fleet.get(path).expect(200).body).unwrap();
        for secret in ["SYSTEM-WORDS", "PROMPT-WORDS", said.trim(), admin.as_str()] {
            assert!(!secret.is_empty() && !body.contains(secret), "{path} tells `{secret}`");
        }
    }

    ember.signal(nix::sys::signal::Signal::SIGTERM);
    ember.has_stopped();
    ember.start_again();
    let fleet = telemetry(&ember, Some(&shown));
    let inventory = fleet.get(INVENTORY).expect(200).json();
    assert_eq!(unhex(inventory["key"].as_str().unwrap()), public, "the box is the same");
    assert_eq!(inventory["boots"].as_array().unwrap().len(), 2);
    assert_eq!(pull(&fleet, &public, "0:0".to_owned())[..pages.len() - 1], pages[..pages.len() - 1]);
    ember.stop();
}

#[test]
fn who_pulls_too_fast_waits_and_disturbs_nobody() {
    let ember = Ember::start_with(LISTEN);
    let greedy = telemetry(&ember, Some(&operators(&ember)));
    let refused = (0..2_000).map(|_| greedy.get(LEDGER)).find(|reply| reply.status != 200).expect("a limit");
    refused.error(429);
    assert!(refused.header("retry-after").parse::<u64>().is_ok_and(|seconds| seconds > 0));
    greedy.get("/metrics").expect(200);
    ember.client().get("/v1/models").expect(200);
    ember.stop();
}

#[test]
fn nothing_listens_unless_it_is_asked_to() {
    let ember = Ember::start();
    assert!(!ember.data().join("telemetry/address").exists());
    assert!(!ember.data().join("telemetry/box.key").exists());
    ember.stop();
}
