use super::*;
use serde_json::json;

fn render(source: &str, messages: &[Message]) -> Result<String> {
    Template::parse(Path::new("t.jinja"), source)?.render(
        messages,
        true,
        &[("eos_token", "</s>")],
        &Default::default(),
    )
}

fn hello() -> Vec<Message> {
    vec![Message::new("user", "hello")]
}

fn refused(source: &str, part: &str) {
    let start = std::time::Instant::now();
    let text = render(source, &hello()).unwrap_err().to_string();
    assert!(text.starts_with("t.jinja") && text.contains(part), "{text}");
    assert!(start.elapsed().as_secs_f64() < 5.0, "{source} took {:?}", start.elapsed());
}

/// Rendered by transformers itself: `scripts/parity/chat_templates.py`.
#[test]
fn known_templates_render_as_in_transformers() {
    let golden: Json = serde_json::from_str(include_str!("../../../tests/data/chat_templates.json")).unwrap();
    let conversations = golden["conversations"].as_array().unwrap();
    for case in golden["cases"].as_array().unwrap() {
        let template = Template::parse(
            Path::new("t.jinja"),
            golden["templates"][case["name"].as_str().unwrap()].as_str().unwrap(),
        )
        .unwrap();
        let messages: Vec<Message> = conversations[case["conversation"].as_u64().unwrap() as usize]
            .as_array()
            .unwrap()
            .iter()
            .map(|m| {
                let mut extra = m.as_object().unwrap().clone();
                let role = extra.remove("role").unwrap().as_str().unwrap().to_string();
                let content = extra.remove("content").unwrap_or(Json::Null);
                Message { role, content, extra }
            })
            .collect();
        let special = [("bos_token", "<s>"), ("eos_token", "</s>")];
        let variables = case["variables"].as_object().unwrap();
        let found = template.render(&messages, case["add_generation_prompt"] == true, &special, variables);
        let name = format!("{} on conversation {}", case["name"], case["conversation"]);
        match (found, case["text"].as_str()) {
            (Ok(found), Some(wanted)) => assert_eq!(found, wanted, "{name}"),
            (Err(error), None) => {
                assert!(error.to_string().contains(case["error"].as_str().unwrap()), "{name}: {error}")
            }
            (found, wanted) => panic!("{name}: {found:?} and not {wanted:?}"),
        }
    }
}

#[test]
fn a_template_that_does_not_end_is_stopped() {
    let loops = "{% for a in range(99999) %}{% for b in range(99999) %}{% for c in range(99999) %}x{% endfor %}{% endfor %}{% endfor %}";
    refused(loops, "does not end");
    let silent = "{% set n = namespace(i=0) %}{% for a in range(99999) %}{% for b in range(99999) %}{% set n.i = n.i + 1 %}{% endfor %}{% endfor %}";
    refused(silent, "does not end");
    refused("{% macro f() %}{{ f() }}{% endmacro %}{{ f() }}", "recursion");
}

#[test]
fn a_template_that_fills_memory_is_stopped() {
    let doubling =
        "{% set n = namespace(s='xxxxxxxx') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}";
    refused(doubling, "does not end");
    refused("{{ 'x' * 99999999 }}{{ 'x' * 99999999 }}{{ 'x' * 99999999 }}", "");
    refused("{{ range(100000)|list|tojson * 1000 }}", "");
    refused("{% for i in range(2000) %}{{ 'x' * 100000 }}{% endfor %}", "");
}

#[test]
fn a_template_has_no_way_out() {
    refused("{{ ''.__class__.__mro__ }}", "");
    refused("{% include '/etc/passwd' %}", "template not found");
    refused("{% import 'os' as os %}", "template not found");
    refused("{{ cycler.__init__.__globals__ }}", "");
}

#[test]
fn malformed_templates_name_the_line() {
    refused("a\n{% for m in messages %}", "does not parse");
    refused("a\n{{ messages[0]['role'] | nothing }}", "line 2");
    refused("{{ raise_exception('roles must alternate') }}", "roles must alternate");
    assert!(render("x", &[]).unwrap_err().to_string().contains("at least one message"));
    let long = " ".repeat(MAX_SOURCE_BYTES + 1);
    assert!(render(&long, &hello()).unwrap_err().to_string().contains("over the limit"));
}

#[test]
fn generation_tags_are_transparent() {
    let source = "{% for m in messages %}\n{%- generation -%}\n {{ m.content }}{% endgeneration %}\n{% endfor %}{{ '{% x' }}";
    assert_eq!(render(source, &hello()).unwrap(), "hello{% x");
    // Not tags: a text, a comment, what is raw.
    let shown = "{{ '{% generation %}' }}{% if '%}' %}1{% endif %}{# {% generation %} ' #}{% raw %}{{ '{% generation %}{% endraw %}";
    assert_eq!(render(shown, &hello()).unwrap(), "{% generation %}1{{ '{% generation %}");
    // What is set there stays there, as in transformers.
    let set = "{% set a = 1 %}{% generation %}{% set a = 2 %}{{ a }}{% endgeneration %}{{ a }}";
    assert_eq!(render(set, &hello()).unwrap(), "21");
}

#[test]
fn json_is_pythons() {
    let variables = json!({"v": {"b": [1, 2.5, true, null], "a": "é<\"\n", "e": {}, "l": []}});
    let render = |source: &str| {
        let template = Template::parse(Path::new("t"), source).unwrap();
        template.render(&hello(), false, &[], variables.as_object().unwrap()).unwrap()
    };
    assert_eq!(render("{{ v|tojson }}"), r#"{"b": [1, 2.5, true, null], "a": "é<\"\n", "e": {}, "l": []}"#);
    // As Python's `repr` has them.
    let floats = [1e-7, 1e-5, 1e-4, 0.1, 1.0, 1e15, 1e16, 1.5e300, -2.5e-9, 123456.789];
    let spelled = "1e-07, 1e-05, 0.0001, 0.1, 1.0, 1000000000000000.0, 1e+16, 1.5e+300, -2.5e-09, 123456.789";
    let template =
        Template::parse(Path::new("t"), "{{ f|tojson }} {% for x in f %}{{ x }}, {% endfor %}").unwrap();
    let variables = json!({"f": floats});
    let found = template.render(&hello(), false, &[], variables.as_object().unwrap()).unwrap();
    assert_eq!(found, format!("[{spelled}] {spelled}, "));
    assert_eq!(render("{{ v.a|tojson(ensure_ascii=true) }}"), r#""\u00e9<\"\n""#);
    assert_eq!(render("{{ v.b|tojson(separators=(',', ':')) }}"), "[1,2.5,true,null]");
    assert_eq!(render("{{ v.b[:2]|tojson(indent=2) }}"), "[\n  1,\n  2.5\n]");
    assert_eq!(
        render("{{ v|tojson(sort_keys=true) }}"),
        r#"{"a": "é<\"\n", "b": [1, 2.5, true, null], "e": {}, "l": []}"#
    );
    assert_eq!(render("{{ none }} {{ true }} {{ v.b[0] == 1 }}"), "None True True");
}

#[test]
fn dates() {
    let at = |seconds: u64| std::time::UNIX_EPOCH + std::time::Duration::from_secs(seconds);
    let of = |format: &str, seconds| strftime(format, at(seconds)).unwrap();
    assert_eq!(of("%d %b %Y", 0), "01 Jan 1970");
    assert_eq!(
        of("%A %Y-%m-%d %H:%M:%S %B %y %a %%%Z", 1_709_210_096),
        "Thursday 2024-02-29 12:34:56 February 24 Thu %"
    );
    assert_eq!(of("%F %T %-d %e %j %I %p %-H %-M", 1_709_510_700), "2024-03-04 00:05:00 4  4 064 12 AM 0 5");
    assert_eq!(of("%j %-j %p", 1_735_647_000), "366 366 PM");
    for unknown in ["%", "%!", "%+"] {
        let error = strftime(unknown, at(0)).unwrap_err().to_string();
        assert!(error.contains(&format!("does not know a directive in `{unknown}`")), "{error}");
    }
}

#[test]
fn what_a_step_makes_is_bounded_too() {
    let repeated = |step: &str| {
        format!(
            "{{% set ns=namespace(s='aaaaaaaa') %}}{{% for i in range(20) %}}{{% set ns.s = {step} %}}{{% endfor %}}"
        )
    };
    refused(&repeated("ns.s.replace('a', ns.s)"), "`replace` of a text that is too long");
    refused(&repeated("ns.s.join([ns.s, ns.s, ns.s, ns.s])"), "`join`");
    refused("{{ '{:>10000000000}'.format(1) }}", "`format`");
    refused("{{ ('a'*30000000).split('a')|length }}", "`split`");
    let nested = "{% set ns=namespace(v=[1]) %}{% for i in range(60) %}{% set ns.v=[ns.v,ns.v] %}{% endfor %}{{ ns.v|string|length }}";
    refused(nested, "does not end");
    let deep = "{% set ns=namespace(v=[]) %}{% for i in range(100000) %}{% set ns.v=[ns.v] %}{% endfor %}{{ ns.v|string|length }}";
    assert_eq!(render(deep, &hello()).unwrap(), "200002");
    let long = format!("{{{{ 1{} }}}}", "+1".repeat(100_000));
    assert_eq!(render(&long, &hello()).unwrap(), "100001");
}

#[test]
fn texts_and_dictionaries_are_sequences() {
    let of = "{{ 'a' is sequence }}{{ {} is sequence }}{{ [] is sequence }}{{ 1 is sequence }}{{ none is sequence }}";
    assert_eq!(render(of, &hello()).unwrap(), "TrueTrueTrueFalseFalse");
}
